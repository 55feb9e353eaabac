"""LangChain's client for OpenAI's API against a gateway. Needs OPENAI_BASE_URL."""

import os
import unittest

import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

URL = os.environ["OPENAI_BASE_URL"]
MODEL = openai.OpenAI(api_key="any").models.list().data[0].id
QUESTION = "Name three birds of the sea shore."


def chat(**more):
    return ChatOpenAI(**{"model": MODEL, "base_url": URL, "api_key": "any", "max_tokens": 40, "temperature": 0, "max_retries": 0} | more)


class Chat(unittest.TestCase):
    def test_an_answer_with_usage_and_its_end(self):
        answer = chat().invoke(QUESTION)
        self.assertIsInstance(answer, AIMessage)
        self.assertTrue(answer.content)
        usage = answer.usage_metadata
        self.assertEqual(usage["total_tokens"], usage["input_tokens"] + usage["output_tokens"])
        self.assertIn(answer.response_metadata["finish_reason"], ("stop", "length"))

    def test_a_stream_says_what_the_whole_answer_says(self):
        whole = chat().invoke(QUESTION)
        chunks = list(chat(stream_usage=True).stream(QUESTION))
        self.assertEqual("".join(chunk.content for chunk in chunks), whole.content)
        usage = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
        self.assertEqual(usage[-1]["output_tokens"], whole.usage_metadata["output_tokens"])

    def test_a_chain_with_roles(self):
        prompt = ChatPromptTemplate.from_messages([("system", "You are brief."), ("human", "{question}")])
        through_the_chain = (prompt | chat()).invoke({"question": QUESTION})
        alone = chat().invoke([SystemMessage("You are brief."), HumanMessage(QUESTION)])
        self.assertEqual(through_the_chain.content, alone.content)

    def test_a_batch_says_what_each_says_alone(self):
        questions = [f"Count from {i} upwards." for i in range(4)]
        self.assertEqual(
            [answer.content for answer in chat(max_tokens=16).batch(questions)],
            [chat(max_tokens=16).invoke(question).content for question in questions],
        )

    def test_stop_and_logprobs(self):
        whole = chat().invoke(QUESTION).content
        word = whole.split()[4]
        self.assertEqual(chat(stop_sequences=[word]).invoke(QUESTION).content, whole[: whole.index(word)])
        answer = chat(logprobs=True, top_logprobs=2, max_tokens=5).invoke(QUESTION)
        self.assertEqual(len(answer.response_metadata["logprobs"]["content"]), 5)

    def test_completions(self):
        text = OpenAI(model=MODEL, base_url=URL, api_key="any", max_tokens=8, temperature=0, max_retries=0).invoke("The sea is")
        self.assertTrue(text)

    def test_errors_are_those_of_openai(self):
        with self.assertRaises(openai.NotFoundError):
            chat(model="no-such-model").invoke(QUESTION)
        with self.assertRaises(openai.BadRequestError) as caught:
            chat(temperature=9).invoke(QUESTION)
        self.assertEqual(caught.exception.param, "temperature")

    def test_embeddings_and_tools_are_refused_by_name(self):
        embeddings = OpenAIEmbeddings(model=MODEL, base_url=URL, api_key="any", max_retries=0, check_embedding_ctx_length=False)
        with self.assertRaisesRegex(openai.NotFoundError, "/v1/embeddings"):
            embeddings.embed_query("gulls")

        def tide(place: str) -> str:
            """The tide at a place."""
            return place

        with self.assertRaises(openai.BadRequestError) as caught:
            chat().bind_tools([tide]).invoke(QUESTION)
        self.assertEqual(caught.exception.param, "tools")


if __name__ == "__main__":
    unittest.main(verbosity=1)
