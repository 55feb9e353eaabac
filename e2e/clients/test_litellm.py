"""LiteLLM against a gateway, as an OpenAI-compatible server. Needs OPENAI_BASE_URL."""

import os
import unittest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it asks the internet for prices otherwise
import litellm  # noqa: E402
import openai  # noqa: E402

litellm.telemetry = False
litellm.suppress_debug_info = True
URL = os.environ["OPENAI_BASE_URL"]
MODEL = openai.OpenAI(api_key="any").models.list().data[0].id
QUESTION = [{"role": "user", "content": "Name three birds of the sea shore."}]


def chat(model=MODEL, **more):
    asked = {"messages": QUESTION, "max_tokens": 40, "temperature": 0, "num_retries": 0}
    return litellm.completion(model=f"openai/{model}", api_base=URL, api_key="any", **asked | more)


class Chat(unittest.TestCase):
    def test_an_answer_with_usage(self):
        answer = chat()
        self.assertTrue(answer.choices[0].message.content)
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_a_stream_says_what_the_whole_answer_says(self):
        whole = chat()
        chunks = list(chat(stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        rebuilt = litellm.stream_chunk_builder(chunks, messages=QUESTION)
        self.assertEqual(rebuilt.usage.completion_tokens, whole.usage.completion_tokens)

    def test_stop_logprobs_and_seed(self):
        whole = chat().choices[0].message.content
        word = whole.split()[4]
        self.assertEqual(chat(stop=[word]).choices[0].message.content, whole[: whole.index(word)])
        self.assertEqual(len(chat(logprobs=True, top_logprobs=2, max_tokens=5).choices[0].logprobs.content), 5)
        self.assertEqual(*(chat(temperature=1.0, seed=7).choices[0].message.content for _ in range(2)))

    def test_completions(self):
        answer = litellm.text_completion(
            model=f"text-completion-openai/{MODEL}", api_base=URL, api_key="any", prompt="The sea is", max_tokens=8, temperature=0
        )
        self.assertTrue(answer.choices[0].text)

    def test_errors_have_its_types(self):
        with self.assertRaises(litellm.NotFoundError):
            chat(model="no-such-model")
        with self.assertRaisesRegex(litellm.BadRequestError, "temperature"):
            chat(temperature=9)
        with self.assertRaises(litellm.ContextWindowExceededError):
            chat(messages=[{"role": "user", "content": "word " * 20000}])

    def test_embeddings_are_refused_by_the_path(self):
        with self.assertRaisesRegex(litellm.NotFoundError, "/v1/embeddings"):
            litellm.embedding(model=f"openai/{MODEL}", api_base=URL, api_key="any", input=["gulls"], max_retries=0)


if __name__ == "__main__":
    unittest.main(verbosity=1)
