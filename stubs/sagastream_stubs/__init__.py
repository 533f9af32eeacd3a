"""The sample services: inventory, payment, shipping. Each is a module with a `service`."""
