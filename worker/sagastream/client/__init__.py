"""Begin sagas, look at them, wait for their end, act on them."""
