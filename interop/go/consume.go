package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

const consumeCount = 60

// consumePush: two members share the queues, and each message comes to one of them.
func consumePush(s *setting) (string, error) {
	seen := []*collection{newCollection(), newCollection()}
	for _, mine := range seen {
		if err := s.consume(consumer.MessageSelector{}, mine.handle); err != nil {
			return "", err
		}
	}
	p, err := s.producer()
	if err != nil {
		return "", err
	}
	deadline := time.Now().Add(waitTime)
	sent := 0
	// The queues are divided when both get something.
	for sent < consumeCount || seen[0].size() == 0 || seen[1].size() == 0 {
		if time.Now().After(deadline) {
			return "", fmt.Errorf("one member gets nothing")
		}
		if _, err := p.SendSync(context.Background(), s.message(fmt.Sprint("m", sent))); err != nil {
			return "", err
		}
		sent++
		time.Sleep(50 * time.Millisecond)
	}
	all := func() bool {
		for at := 0; at < sent; at++ {
			body := fmt.Sprint("m", at)
			if seen[0].count(body)+seen[1].count(body) == 0 {
				return false
			}
		}
		return true
	}
	if err := await("all", waitTime, all); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d messages, two members: %d and %d", sent, seen[0].size(), seen[1].size()), nil
}

// consumeOrderly: per key strictly in order, with two members.
func consumeOrderly(s *setting) (string, error) {
	const keys = 6
	var lock sync.Mutex
	next := map[string]int{}
	again := 0
	var wrong []string
	handle := func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		lock.Lock()
		defer lock.Unlock()
		for _, message := range messages {
			key := message.GetProperty("key")
			number, err := strconv.Atoi(message.GetProperty("number"))
			// A queue that changes hands may go on from a little earlier.
			if err == nil && number < next[key] {
				again++
			} else if err != nil || number > next[key] {
				wrong = append(wrong, fmt.Sprintf("%s: %d for %d", key, number, next[key]))
			}
			next[key] = number + 1
		}
		return consumer.ConsumeSuccess, nil
	}
	for member := 0; member < 2; member++ {
		if err := s.consume(consumer.MessageSelector{}, handle, consumer.WithConsumerOrder(true)); err != nil {
			return "", err
		}
	}
	p, err := s.producer(producer.WithQueueSelector(producer.NewHashQueueSelector()))
	if err != nil {
		return "", err
	}
	for number := 0; number < consumeCount; number++ {
		for key := 0; key < keys; key++ {
			message := s.message(fmt.Sprint(key, "/", number))
			message.WithShardingKey(fmt.Sprint("k", key))
			message.WithProperty("key", fmt.Sprint("k", key))
			message.WithProperty("number", strconv.Itoa(number))
			if _, err := p.SendSync(context.Background(), message); err != nil {
				return "", err
			}
		}
	}
	// A member that loses a queue to another keeps its lock (removeUnnecessaryMessageQueue does not
	// unlock): the other gets it when it has expired, after 60 s, at its next try, every 20 s.
	err = await("all", 2*waitTime, func() bool {
		lock.Lock()
		defer lock.Unlock()
		total := 0
		for _, reached := range next {
			total += reached
		}
		return total == keys*consumeCount
	})
	lock.Lock()
	defer lock.Unlock()
	if err == nil && len(wrong) > 0 {
		err = fmt.Errorf("out of order: %v", wrong)
	}
	detail := fmt.Sprintf("%d keys of %d in order", keys, consumeCount)
	if again > 0 {
		detail += fmt.Sprintf(", %d came again", again)
	}
	return detail, err
}

func consumeBroadcast(s *setting) (string, error) {
	seen := []*collection{newCollection(), newCollection()}
	for _, mine := range seen {
		model := consumer.WithConsumerModel(consumer.BroadCasting)
		if err := s.consume(consumer.MessageSelector{}, mine.handle, model); err != nil {
			return "", err
		}
	}
	p, err := s.producer()
	if err != nil {
		return "", err
	}
	for at := 0; at < consumeCount; at++ {
		if _, err := p.SendSync(context.Background(), s.message(fmt.Sprint("m", at))); err != nil {
			return "", err
		}
	}
	err = await("everything at both", waitTime, func() bool {
		return seen[0].size() == consumeCount && seen[1].size() == consumeCount
	})
	return fmt.Sprint(consumeCount, " messages at both members"), err
}

func filterTag(s *setting) (string, error) {
	seen := newCollection()
	selector := consumer.MessageSelector{Type: consumer.TAG, Expression: "red || blue"}
	if err := s.consume(selector, seen.handle); err != nil {
		return "", err
	}
	p, err := s.producer()
	if err != nil {
		return "", err
	}
	for _, tag := range []string{"red", "green", "blue", "redder"} {
		if _, err := p.SendSync(context.Background(), s.message("is "+tag).WithTag(tag)); err != nil {
			return "", err
		}
	}
	if _, err := p.SendSync(context.Background(), s.message("last").WithTag("blue")); err != nil {
		return "", err
	}
	if err := await("three", waitTime, func() bool { return seen.size() >= 3 }); err != nil {
		return "", err
	}
	return "red and blue of four", seen.exactly("is red", "is blue", "last")
}

func filterSQL(s *setting) (string, error) {
	seen := newCollection()
	selector := consumer.MessageSelector{
		Type:       consumer.SQL92,
		Expression: "amount BETWEEN 10 AND 20 AND country IN ('CH', 'FR')",
	}
	if err := s.consume(selector, seen.handle); err != nil {
		return "", err
	}
	p, err := s.producer()
	if err != nil {
		return "", err
	}
	for _, one := range [][2]string{{"5", "CH"}, {"15", "CH"}, {"15", "DE"}, {"20", "FR"}, {"21", "FR"}} {
		message := s.message(one[0] + one[1])
		message.WithProperty("amount", one[0])
		message.WithProperty("country", one[1])
		if _, err := p.SendSync(context.Background(), message); err != nil {
			return "", err
		}
	}
	if err := await("two", waitTime, func() bool { return seen.size() >= 2 }); err != nil {
		return "", err
	}
	time.Sleep(time.Second)
	return "two of five", seen.exactly("15CH", "20FR")
}
