"""Questions as text: their columns in files and tables, their wording and their spelling."""
