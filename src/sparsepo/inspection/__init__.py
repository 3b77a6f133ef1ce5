"""What the masks chose: one collection of every number, and the pages, tables and plots made of it."""
