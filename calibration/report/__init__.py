"""Results of the calibrations as data, tables, plots and one HTML page."""
