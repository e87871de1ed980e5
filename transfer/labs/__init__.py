"""Studies with a known answer, which a user can run: `mutransfer lab NAME`."""
