"""The lists that corpora come with: read line by line, stored column by column."""
