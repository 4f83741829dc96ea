"""What is computed: graphs and their nodes. Nothing here runs anything."""
