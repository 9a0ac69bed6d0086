"""The store decides what exists; files follow. Enter through `cocoon.store.store.Store`."""
