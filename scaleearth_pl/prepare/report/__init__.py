"""What a corpus is made of: the paper's Figure 2 for any corpus, tables, and a data card."""
