"""A web page on which people draw digits: what it reads from its surroundings, and the database that keeps drawings."""
