"""`sagastream dashboard`: pages on which a person sees the sagas of a store, and acts on them."""
