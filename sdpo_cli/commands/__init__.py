"""The subcommands, one a file: read the options, call one engine function, print. Importing them is cheap."""
