module github.com/dunlin/e2e/images/models

go 1.26
