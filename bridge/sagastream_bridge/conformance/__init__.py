"""`sagastream check-service`: does a live service, in whatever language, keep the promises of the protocol?"""
