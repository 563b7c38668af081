"""The chat template of tokenizers trained here: ChatML turns, and tools as JSON between tags.

Tool calls have the form that Qwen2.5 and Hermes models write, so that one parser reads both.
"""

CHAT_TEMPLATE = r"""
{%- macro described() -%}
Tools, one JSON object a line:
{% for tool in tools %}
{{ tool | tojson }}
{% endfor %}
Call one by <tool_call>{"name": ..., "arguments": {...}}</tool_call>
{%- endmacro -%}
{%- if tools and (not messages or messages[0].role != 'system') -%}
{{ '<|im_start|>system\n' + described() + '<|im_end|>\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{ '<|im_start|>user\n<tool_response>' + (message.content or '') + '</tool_response><|im_end|>\n' }}
{%- else -%}
{{ '<|im_start|>' + message.role + '\n' + (message.content or '') }}
{%- if loop.first and tools and message.role == 'system' -%}
{{ '\n\n' + described() }}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{{ '<tool_call>' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) + '</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{%- endif -%}
""".strip()

WITHOUT_INSTRUCTIONS = r"""
{%- set messages = messages | rejectattr('role', 'equalto', 'system') | list -%}
{%- set tools = none -%}
""".lstrip()
"""Before a template: it then leaves out what the model is told to do and which tools it has."""
