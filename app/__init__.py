"""A web page on which people draw digits, its settings, and the database that keeps the drawings."""
