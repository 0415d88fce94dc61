"""What is handed out: packages, archives with a trained bridge, and proof that each works alone."""
