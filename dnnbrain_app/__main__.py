"""``python -m dnnbrain_app`` is the ``dnnbrain`` command."""

from dnnbrain_app.cli import main

if __name__ == "__main__":
    main()
