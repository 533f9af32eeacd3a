"""What services are written with, and what runs them."""
