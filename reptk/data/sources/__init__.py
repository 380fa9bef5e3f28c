"""The data sets that come with reptk, one module each."""
