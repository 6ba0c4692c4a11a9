"""Tables, plots and one page from the evidence. Never imports torch."""
