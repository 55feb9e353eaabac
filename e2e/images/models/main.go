// Command models hands out the files of a folder over HTTP, with Range requests, for the local cluster.
package main

import (
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	folder, address := "/models", ":8080"
	if len(os.Args) > 1 {
		folder = os.Args[1]
	}
	server := &http.Server{
		Addr:              address,
		Handler:           http.FileServer(http.Dir(folder)),
		ReadHeaderTimeout: 5 * time.Second,
	}
	log.Fatal(server.ListenAndServe())
}
