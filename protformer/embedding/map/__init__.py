"""A store of embeddings as one page: proteins as points that can be searched, coloured, picked and saved."""

from protformer.embedding.map.content import Content, make_content
from protformer.embedding.map.page import render

__all__ = ["Content", "make_content", "render"]
