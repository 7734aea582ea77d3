package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
)

const (
	lateMax   = 3 * time.Second
	checkTime = 150 * time.Second
)

func delayLevels(s *setting) (string, error) {
	var lock sync.Mutex
	came := map[string]time.Time{}
	handle := func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		lock.Lock()
		defer lock.Unlock()
		for _, message := range messages {
			came[string(message.Body)] = time.Now()
		}
		return consumer.ConsumeSuccess, nil
	}
	if err := s.consume(consumer.MessageSelector{}, handle); err != nil {
		return "", err
	}
	p, err := s.producer()
	if err != nil {
		return "", err
	}
	due := map[string]time.Time{}
	for level, delay := range []time.Duration{time.Second, 5 * time.Second, 10 * time.Second} {
		body := fmt.Sprint("level", level+1)
		due[body] = time.Now().Add(delay)
		if _, err := p.SendSync(context.Background(), s.message(body).WithDelayTimeLevel(level+1)); err != nil {
			return "", err
		}
	}
	err = await("all delivered", waitTime, func() bool {
		lock.Lock()
		defer lock.Unlock()
		return len(came) == len(due)
	})
	if err != nil {
		return "", err
	}
	var late []string
	for level := 1; level <= len(due); level++ {
		body := fmt.Sprint("level", level)
		behind := came[body].Sub(due[body])
		// Times on the wire have a millisecond's precision.
		if behind < -time.Millisecond || behind > lateMax {
			return "", fmt.Errorf("%s: %v from its time", body, behind)
		}
		late = append(late, fmt.Sprintf("%s +%d ms", body, behind.Milliseconds()))
	}
	return strings.Join(late, ", "), nil
}

// listener decides by the body, and leaves "unknown..." to the check-back.
type listener struct {
	checks *collection
}

func (l *listener) ExecuteLocalTransaction(half *primitive.Message) primitive.LocalTransactionState {
	if strings.HasPrefix(string(half.Body), "unknown") {
		return primitive.UnknowState
	}
	return decided(string(half.Body))
}

func (l *listener) CheckLocalTransaction(half *primitive.MessageExt) primitive.LocalTransactionState {
	l.checks.add(string(half.Body))
	return decided(string(half.Body))
}

func decided(body string) primitive.LocalTransactionState {
	if strings.HasSuffix(body, "commit") {
		return primitive.CommitMessageState
	}
	return primitive.RollbackMessageState
}

func transaction(s *setting) (string, error) {
	seen, checks := newCollection(), newCollection()
	if err := s.consume(consumer.MessageSelector{}, seen.handle); err != nil {
		return "", err
	}
	p, err := rocketmq.NewTransactionProducer(&listener{checks: checks}, s.producerOptions()...)
	if err != nil {
		return "", err
	}
	if err := p.Start(); err != nil {
		return "", err
	}
	s.endings = append(s.endings, p.Shutdown)
	for _, body := range []string{"commit", "rollback", "unknown-commit", "unknown-rollback"} {
		if _, err := p.SendMessageInTransaction(context.Background(), s.message(body)); err != nil {
			return "", err
		}
	}
	if err := await("the committed one", waitTime, func() bool { return seen.count("commit") > 0 }); err != nil {
		return "", err
	}
	err = await("both are checked and the one is committed", checkTime, func() bool {
		return checks.size() == 2 && seen.count("unknown-commit") > 0
	})
	if err != nil {
		return "", err
	}
	time.Sleep(time.Second)
	return "committed, rolled back, and both after a check-back", seen.exactly("commit", "unknown-commit")
}

func retryDLQ(s *setting) (string, error) {
	never, second := newCollection(), newCollection()
	handle := func(ctx context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		if concurrently, ok := primitive.GetConcurrentlyCtx(ctx); ok {
			concurrently.DelayLevelWhenNextConsume = 1
		}
		for _, message := range messages {
			if string(message.Body) == "never" {
				never.add(fmt.Sprint(message.ReconsumeTimes))
				return consumer.ConsumeRetryLater, nil
			}
			second.add(fmt.Sprint(message.ReconsumeTimes))
			if message.ReconsumeTimes == 0 {
				return consumer.ConsumeRetryLater, nil
			}
		}
		return consumer.ConsumeSuccess, nil
	}
	if err := s.consume(consumer.MessageSelector{}, handle, consumer.WithMaxReconsumeTimes(2)); err != nil {
		return "", err
	}
	p, err := s.producer()
	if err != nil {
		return "", err
	}
	for _, body := range []string{"never", "second"} {
		if _, err := p.SendSync(context.Background(), s.message(body)); err != nil {
			return "", err
		}
	}
	if err := await("the second time", waitTime, func() bool { return second.count("1") == 1 }); err != nil {
		return "", err
	}
	if err := await("three tries", waitTime, func() bool { return never.count("2") == 1 }); err != nil {
		return "", err
	}
	// The topic comes with the first dead letter, a moment after the last try, and this client's
	// consumers refuse to start without it.
	if err := s.awaitTopic("%DLQ%" + s.group); err != nil {
		return "", err
	}
	dead := newCollection()
	err = s.consumeFrom(s.group+"-undertaker", "%DLQ%"+s.group, consumer.MessageSelector{}, dead.handle)
	if err != nil {
		return "", err
	}
	if err := await("the dead letter", waitTime, func() bool { return dead.size() > 0 }); err != nil {
		return "", err
	}
	return "retried, and a dead letter after 3 tries", dead.exactly("never")
}

// resetOffset: the group is set back while it consumes. The runner does it.
func resetOffset(s *setting) (string, error) {
	const count = 40
	seen := newCollection()
	if err := s.consume(consumer.MessageSelector{}, seen.handle); err != nil {
		return "", err
	}
	p, err := s.producer()
	if err != nil {
		return "", err
	}
	for at := 0; at < count; at++ {
		if _, err := p.SendSync(context.Background(), s.message(fmt.Sprint("m", at))); err != nil {
			return "", err
		}
	}
	if err := await("all once", waitTime, func() bool { return seen.size() == count }); err != nil {
		return "", err
	}
	// Offsets are committed every five seconds; a reset is one whether or not they are.
	time.Sleep(6 * time.Second)
	output(map[string]any{"event": "reset", "topic": s.topic, "group": s.group})
	err = await("all twice", waitTime, func() bool {
		for at := 0; at < count; at++ {
			if seen.count(fmt.Sprint("m", at)) < 2 {
				return false
			}
		}
		return true
	})
	return fmt.Sprint(count, " messages came again"), err
}

func requestReply(s *setting) (string, error) {
	answering, err := s.producer()
	if err != nil {
		return "", err
	}
	handle := func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		for _, message := range messages {
			body := append([]byte("re: "), message.Body...)
			reply, err := consumer.CreateReplyMessage(message, body)
			if err != nil {
				return consumer.ConsumeRetryLater, err
			}
			// The function takes the body for properties (v2.1.2) and leaves the message without one.
			reply.Body = body
			if _, err := answering.SendSync(context.Background(), reply); err != nil {
				return consumer.ConsumeRetryLater, err
			}
		}
		return consumer.ConsumeSuccess, nil
	}
	if err := s.consume(consumer.MessageSelector{}, handle); err != nil {
		return "", err
	}
	asking, err := s.producer()
	if err != nil {
		return "", err
	}
	for at := 0; at < 3; at++ {
		reply, err := asking.Request(context.Background(), 20*time.Second, s.message(fmt.Sprint("q", at)))
		if err != nil {
			return "", err
		}
		if string(reply.Body) != fmt.Sprint("re: q", at) {
			return "", fmt.Errorf("got %q", reply.Body)
		}
	}
	return "three requests answered", nil
}
