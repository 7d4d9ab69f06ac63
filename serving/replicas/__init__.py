"""Several servers behind one address; nothing here knows what runs them."""
