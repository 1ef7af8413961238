"""Systems over their seeds, side by side: from the folders of runs to table 1 and figure 3 of the paper."""
