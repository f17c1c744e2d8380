"""From promoted aliases to answers: what a vLLM replica serves, and how it follows the registry."""

if __name__ != "loradock.serving":  # a module under two names is two modules, with two of each class
    raise ImportError("this package is loradock.serving; import it by that name")
