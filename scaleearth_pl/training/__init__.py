"""The Lightning shell around model and data."""
