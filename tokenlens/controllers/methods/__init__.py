"""The methods: a file each, with its config, its source and what it does."""
