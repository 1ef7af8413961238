"""The lists that corpora come with: read line by line, kept column by column."""
