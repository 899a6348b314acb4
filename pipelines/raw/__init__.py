"""Raw files, local or S3, read strictly: no pickle is run, no size believed, no path leaves its root."""
