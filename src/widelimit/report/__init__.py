"""Reports: a self-contained HTML page, tables in the terminal."""
