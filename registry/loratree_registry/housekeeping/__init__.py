"""Care of the stored data, on the machine that opens the database and the blob store."""
