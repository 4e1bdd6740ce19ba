"""Pages and widgets to look at attention and to click through it."""

from .attention import attention_page, show_attention
from .widget import attention_widget

__all__ = ["attention_page", "attention_widget", "show_attention"]
