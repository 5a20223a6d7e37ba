// SPDX-License-Identifier: Apache-2.0

// A client of etcd, unchanged, that works on several servers of one log for a while: locks, elections, puts, a watch and
// a lease that is kept alive. It prints each error, and at the end what it did and what is there.
//
//	go run . 127.0.0.1:2379 127.0.0.1:22379 127.0.0.1:32379
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const (
	length   = 40 * time.Second
	callTime = 8 * time.Second
)

// check ends the program when its beginning fails.
func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// say prints an error of a step, unless the session is over.
func say(session context.Context, step string, err error) bool {
	if err != nil && session.Err() == nil {
		fmt.Printf("%s: %v\n", step, err)
	}
	return err == nil
}

// watch counts events, and says so when one comes twice or out of order.
func watch(client *clientv3.Client, events *atomic.Int64) {
	last := int64(0)
	for response := range client.Watch(context.Background(), "n/", clientv3.WithPrefix()) {
		for _, event := range response.Events {
			if event.Kv.ModRevision <= last {
				fmt.Println("an event out of order:", event.Kv.ModRevision, "after", last)
			}
			last = event.Kv.ModRevision
			events.Add(1)
		}
	}
}

func main() {
	client, err := clientv3.New(clientv3.Config{Endpoints: os.Args[1:], DialTimeout: 3 * time.Second})
	check(err)
	session, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	owner, err := concurrency.NewSession(client, concurrency.WithTTL(5))
	check(err)
	var events, renewals atomic.Int64
	go watch(client, &events)
	lease, err := client.Grant(session, 4)
	check(err)
	_, err = client.Put(session, "leased", "v", clientv3.WithLease(lease.ID))
	check(err)
	kept, err := client.KeepAlive(context.Background(), lease.ID)
	check(err)
	go func() {
		for range kept {
			renewals.Add(1)
		}
		fmt.Println("the lease is kept alive no more")
	}()

	mutex, election := concurrency.NewMutex(owner, "lock"), concurrency.NewElection(owner, "election")
	locks, terms, puts, slowest := 0, 0, 0, time.Duration(0)
	for session.Err() == nil {
		began := time.Now()
		call, done := context.WithTimeout(session, callTime)
		if say(session, "lock", mutex.Lock(call)) && say(session, "unlock", mutex.Unlock(call)) {
			locks++
		}
		if say(session, "campaign", election.Campaign(call, "me")) && say(session, "resign", election.Resign(call)) {
			terms++
		}
		if _, err := client.Put(call, fmt.Sprintf("n/%d", puts), "v"); say(session, "put", err) {
			puts++
		}
		done()
		slowest = max(slowest, time.Since(began))
	}

	time.Sleep(time.Second) // for the last events
	leased, err := client.Get(context.Background(), "leased")
	check(err)
	there, err := client.Get(context.Background(), "n/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	check(err)
	fmt.Printf("%d locks, %d terms, %d puts; %d keys are there, %d events came; %d renewals, the leased key is there: %t\n",
		locks, terms, puts, there.Count, events.Load(), renewals.Load(), len(leased.Kvs) == 1)
	fmt.Println("the slowest round:", slowest.Round(time.Millisecond))
}
