"""Importers: public archives as they are on the disk, one file per source, to a stream of records."""
