"""The report of an ablation: statistics, tables, figures, and one page with all of them."""
