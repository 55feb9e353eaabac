"""The official OpenAI client against a gateway: what applications do, and how they see errors. Needs OPENAI_BASE_URL."""

import concurrent.futures
import unittest

import openai

CLIENT = openai.OpenAI(api_key="any", max_retries=0, timeout=60)
MODEL = CLIENT.models.list().data[0].id
QUESTION = [{"role": "user", "content": "Name three birds of the sea shore."}]


def chat(**more):
    return CLIENT.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "max_tokens": 40, "temperature": 0} | more)


class Models(unittest.TestCase):
    def test_one_model_and_it_can_be_retrieved(self):
        self.assertEqual(CLIENT.models.retrieve(MODEL).id, MODEL)

    def test_another_is_not_found(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            chat(model="no-such-model")
        self.assertEqual(caught.exception.code, "model_not_found")


class Chat(unittest.TestCase):
    def test_whole_answer_with_usage(self):
        answer = chat()
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertTrue(answer.choices[0].message.content)
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_a_stream_says_what_the_whole_answer_says(self):
        whole = chat()
        chunks = list(chat(stream=True, stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], whole.choices[0].finish_reason)
        self.assertEqual(chunks[-1].usage, whole.usage)

    def test_the_same_seed_says_the_same_and_another_does_not(self):
        def sampled(seed):
            return chat(temperature=1.0, seed=seed).choices[0].message.content

        self.assertEqual(sampled(7), sampled(7))
        self.assertGreater(len({sampled(seed) for seed in range(4)}), 1)

    def test_several_answers(self):
        answers = chat(n=3, temperature=1.0, seed=1, max_tokens=16)
        self.assertEqual([c.index for c in answers.choices], [0, 1, 2])
        self.assertGreater(len({c.message.content for c in answers.choices}), 1)

    def test_stop_ends_the_answer_and_is_not_part_of_it(self):
        whole = chat().choices[0].message.content
        word = whole.split()[4]
        answer = chat(stop=[word]).choices[0]
        self.assertEqual((answer.message.content, answer.finish_reason), (whole[: whole.index(word)], "stop"))

    def test_length_is_said(self):
        answer = chat(max_tokens=3)
        self.assertEqual((answer.usage.completion_tokens, answer.choices[0].finish_reason), (3, "length"))

    def test_logprobs(self):
        tokens = chat(logprobs=True, top_logprobs=3, max_tokens=5).choices[0].logprobs.content
        self.assertEqual(len(tokens), 5)
        for token in tokens:
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(max(token.top_logprobs, key=lambda t: t.logprob).token, token.token)

    def test_logit_bias_forbids(self):
        ids = chat(max_tokens=1, extra_body={"return_token_ids": True}).choices[0].model_extra["token_ids"]
        other = chat(max_tokens=1, logit_bias={str(ids[0]): -100}, extra_body={"return_token_ids": True})
        self.assertNotEqual(other.choices[0].model_extra["token_ids"], ids)

    def test_a_stream_can_be_left(self):
        with chat(stream=True, max_tokens=500, extra_body={"ignore_eos": True}) as stream:
            next(iter(stream))
        self.assertTrue(chat(max_tokens=4).choices)

    def test_sixteen_at_once_say_what_each_says_alone(self):
        def ask(i):
            messages = [{"role": "user", "content": f"Count from {i} upwards."}]
            return chat(messages=messages, max_tokens=24).choices[0].message.content

        alone = [ask(i) for i in range(16)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            self.assertEqual(list(pool.map(ask, range(16))), alone)


class Completions(unittest.TestCase):
    def test_text_goes_on(self):
        answer = CLIENT.completions.create(model=MODEL, prompt="The sea is", max_tokens=8, temperature=0)
        self.assertTrue(answer.choices[0].text)
        self.assertEqual(answer.usage.completion_tokens, 8)


class Errors(unittest.TestCase):
    def refused(self, param, **more):
        with self.assertRaises(openai.BadRequestError) as caught:
            chat(**more)
        self.assertEqual(caught.exception.param, param)

    def test_bad_parameters_are_named(self):
        self.refused("temperature", temperature=9)
        self.refused("n", n=99)
        self.refused("response_format", response_format={"type": "json_object"})
        self.refused("messages", messages=[])

    def test_a_prompt_that_does_not_fit(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            chat(messages=[{"role": "user", "content": "word " * 20000}])
        self.assertEqual(caught.exception.code, "context_length_exceeded")


if __name__ == "__main__":
    unittest.main(verbosity=1)
