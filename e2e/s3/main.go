// Command s3 serves the folders of a folder as buckets, by S3's API and with its signatures checked: Versity's S3 gateway.
//
//	s3 ADDRESS FOLDER SIDECAR
//
// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are the credentials that it takes; SIDECAR gets what files cannot carry.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: s3 ADDRESS FOLDER SIDECAR")
	}
	if err := serve(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		log.Fatal(err)
	}
}

func serve(address, folder, sidecar string) error {
	about, err := meta.NewSideCar(sidecar)
	if err != nil {
		return err
	}
	files, err := posix.New(folder, about, posix.PosixOpts{SideCarDir: sidecar, Concurrency: 16})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return embedgw.RunVersityGW(ctx, files, &embedgw.Config{
		RootUserAccess:    os.Getenv("AWS_ACCESS_KEY_ID"),
		RootUserSecret:    os.Getenv("AWS_SECRET_ACCESS_KEY"),
		Ports:             []string{address},
		MaxConnections:    64,
		MaxRequests:       64,
		MultipartMaxParts: 10000,
		KeepAlive:         true,
		Quiet:             true,
	})
}
