// SPDX-License-Identifier: Apache-2.0

import static java.nio.charset.StandardCharsets.UTF_8;

import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.grpc.stub.StreamObserver;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

/**
 * A client of etcd for Java, unchanged, that works on several servers of one log for a while: locks, elections, puts, a
 * watch and leases that are kept alive. It prints each error, and at the end what it did and what is there.
 */
public final class Session {
    private static final long LENGTH_NS = TimeUnit.SECONDS.toNanos(40);
    private static final long CALL_S = 8;

    private interface Step {
        void run() throws Exception;
    }

    private static ByteSequence bytes(String text) {
        return ByteSequence.from("java/" + text, UTF_8); // other programs may run beside this one
    }

    private static <T> T wait(CompletableFuture<T> future) throws Exception {
        return future.get(CALL_S, TimeUnit.SECONDS);
    }

    /** Whether a step has succeeded; says why not. */
    private static boolean did(String name, Step step) {
        try {
            step.run();
            return true;
        } catch (Exception error) {
            System.out.println(name + ": " + error);
            return false;
        }
    }

    private static StreamObserver<LeaseKeepAliveResponse> counting(AtomicLong renewals) {
        return new StreamObserver<>() {
            @Override
            public void onNext(LeaseKeepAliveResponse response) {
                renewals.incrementAndGet();
            }

            @Override
            public void onError(Throwable error) {
                System.out.println("a stream of renewals broke: " + error);
            }

            @Override
            public void onCompleted() {}
        };
    }

    public static void main(String[] endpoints) throws Exception {
        try (Client client = Client.builder().endpoints(endpoints).build()) {
            var kv = client.getKVClient();
            var events = new AtomicLong();
            var last = new AtomicLong();
            var watcher = client.getWatchClient().watch(
                bytes("n/"), WatchOption.builder().isPrefix(true).build(), Watch.listener(response -> {
                    for (var event : response.getEvents()) {
                        long revision = event.getKeyValue().getModRevision();
                        long before = last.getAndSet(revision);
                        if (revision <= before) {
                            System.out.println("an event out of order: " + revision + " after " + before);
                        }
                        events.incrementAndGet();
                    }
                }));
            var renewals = new AtomicLong();
            long owner = wait(client.getLeaseClient().grant(5)).getID();
            client.getLeaseClient().keepAlive(owner, counting(new AtomicLong()));
            long lease = wait(client.getLeaseClient().grant(4)).getID();
            wait(kv.put(bytes("leased"), bytes("v"), PutOption.builder().withLeaseId(lease).build()));
            client.getLeaseClient().keepAlive(lease, counting(renewals));

            long locks = 0;
            long terms = 0;
            long slowest = 0;
            var puts = new AtomicLong();
            long until = System.nanoTime() + LENGTH_NS;
            while (System.nanoTime() < until) {
                long began = System.nanoTime();
                if (did("lock", () -> {
                    var lock = wait(client.getLockClient().lock(bytes("lock"), owner));
                    wait(client.getLockClient().unlock(lock.getKey()));
                })) {
                    locks++;
                }
                if (did("election", () -> {
                    var won = wait(client.getElectionClient().campaign(bytes("election"), owner, bytes("me")));
                    wait(client.getElectionClient().resign(won.getLeader()));
                })) {
                    terms++;
                }
                if (did("put", () -> wait(kv.put(bytes("n/" + puts.get()), bytes("v"))))) {
                    puts.incrementAndGet();
                }
                slowest = Math.max(slowest, System.nanoTime() - began);
            }

            Thread.sleep(1_000); // for the last events
            var all = GetOption.builder().isPrefix(true).withCountOnly(true).build();
            long there = wait(kv.get(bytes("n/"), all)).getCount();
            long leased = wait(kv.get(bytes("leased"))).getCount();
            System.out.printf(
                "%d locks, %d terms, %d puts; %d keys are there, %d events came; %d renewals, the leased key is there: %b%n",
                locks, terms, puts.get(), there, events.get(), renewals.get(), leased == 1);
            System.out.printf("the slowest round: %.3fs%n", slowest / 1e9);
            watcher.close();
        }
    }
}
