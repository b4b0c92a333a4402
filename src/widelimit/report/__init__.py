"""Reports: a self-contained HTML page, tables and live bars in the terminal."""
