"""`sagastream check-service`: does a live service, in any language, keep the promises of the protocol?"""
