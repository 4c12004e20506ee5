"""Care of what is stored, where the database and the blob store are."""
