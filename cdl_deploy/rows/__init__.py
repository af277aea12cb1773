"""Predictions as rows of a table: JSON Lines, CSV, Parquet, and a file of them that survives an interruption."""
