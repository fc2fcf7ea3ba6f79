"""The promises of the project as rows that are run: what is done, what is expected, what was measured. See docs/proof.md."""
