"""Records to tables, figures and one page; the only floor that knows how a number is written."""
