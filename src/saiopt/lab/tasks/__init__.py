"""The tasks that recipes configure; they load model libraries."""
