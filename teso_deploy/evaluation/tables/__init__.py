"""Tables of results as data: a table's columns are measurements, its rows are methods with the numbers of a paper."""
