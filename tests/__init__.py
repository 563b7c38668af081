"""A package, because verl and TransferQueue install one called ``tests`` that would be found instead."""
