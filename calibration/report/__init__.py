"""What the calibrations have found, as data, tables, plots and one HTML page."""
