; A barman with two hands fills shots from dispensers and mixes cocktails of two ingredients in a
; shaker. As in the original domain, pouring a cocktail leaves it in the shaker while the level
; falls, and a used shaker has to be emptied and cleaned before the next cocktail.
(define (domain barman)
  (:requirements :strips :typing)
  (:types
    hand level beverage dispenser container - object
    ingredient cocktail - beverage
    shot shaker - container)
  (:predicates
    (ontable ?c - container) (holding ?h - hand ?c - container) (handempty ?h - hand)
    (empty ?c - container) (clean ?c - container)
    (contains ?c - container ?b - beverage) (used ?c - container ?b - beverage)
    (dispenses ?d - dispenser ?i - ingredient)
    (shaker-empty-level ?s - shaker ?l - level) (shaker-level ?s - shaker ?l - level)
    (next ?low - level ?high - level)
    (unshaked ?s - shaker) (shaked ?s - shaker)
    (cocktail-part1 ?c - cocktail ?i - ingredient) (cocktail-part2 ?c - cocktail ?i - ingredient))

  (:action grasp
    :parameters (?h - hand ?c - container)
    :precondition (and (handempty ?h) (ontable ?c))
    :effect (and (not (handempty ?h)) (not (ontable ?c)) (holding ?h ?c)))

  (:action leave
    :parameters (?h - hand ?c - container)
    :precondition (holding ?h ?c)
    :effect (and (not (holding ?h ?c)) (handempty ?h) (ontable ?c)))

  (:action fill-shot
    :parameters (?s - shot ?i - ingredient ?holder - hand ?other - hand ?d - dispenser)
    :precondition (and (dispenses ?d ?i) (holding ?holder ?s) (handempty ?other)
                       (empty ?s) (clean ?s))
    :effect (and (not (empty ?s)) (not (clean ?s)) (contains ?s ?i) (used ?s ?i)))

  (:action refill-shot
    :parameters (?s - shot ?i - ingredient ?holder - hand ?other - hand ?d - dispenser)
    :precondition (and (dispenses ?d ?i) (holding ?holder ?s) (handempty ?other)
                       (empty ?s) (used ?s ?i))
    :effect (and (not (empty ?s)) (contains ?s ?i)))

  (:action empty-shot
    :parameters (?h - hand ?s - shot ?b - beverage)
    :precondition (and (holding ?h ?s) (contains ?s ?b))
    :effect (and (not (contains ?s ?b)) (empty ?s)))

  (:action clean-shot
    :parameters (?s - shot ?b - beverage ?holder - hand ?other - hand)
    :precondition (and (holding ?holder ?s) (handempty ?other) (empty ?s) (used ?s ?b))
    :effect (and (not (used ?s ?b)) (clean ?s)))

  (:action pour-shot-to-clean-shaker
    :parameters (?s - shot ?i - ingredient ?k - shaker ?h - hand ?before - level ?after - level)
    :precondition (and (next ?before ?after) (holding ?h ?s) (contains ?s ?i)
                       (empty ?k) (clean ?k) (shaker-level ?k ?before))
    :effect (and (not (contains ?s ?i)) (empty ?s)
                 (not (empty ?k)) (not (clean ?k)) (contains ?k ?i) (unshaked ?k)
                 (not (shaker-level ?k ?before)) (shaker-level ?k ?after)))

  (:action pour-shot-to-used-shaker
    :parameters (?s - shot ?i - ingredient ?k - shaker ?h - hand ?before - level ?after - level)
    :precondition (and (next ?before ?after) (holding ?h ?s) (contains ?s ?i)
                       (unshaked ?k) (shaker-level ?k ?before))
    :effect (and (not (contains ?s ?i)) (empty ?s) (contains ?k ?i)
                 (not (shaker-level ?k ?before)) (shaker-level ?k ?after)))

  (:action empty-shaker
    :parameters (?h - hand ?k - shaker ?c - cocktail ?before - level ?after - level)
    :precondition (and (shaker-empty-level ?k ?after) (holding ?h ?k) (contains ?k ?c)
                       (shaked ?k) (shaker-level ?k ?before))
    :effect (and (not (shaked ?k)) (not (contains ?k ?c)) (empty ?k)
                 (not (shaker-level ?k ?before)) (shaker-level ?k ?after)))

  (:action clean-shaker
    :parameters (?holder - hand ?other - hand ?k - shaker)
    :precondition (and (holding ?holder ?k) (handempty ?other) (empty ?k))
    :effect (clean ?k))

  (:action shake
    :parameters (?c - cocktail ?first - ingredient ?second - ingredient ?k - shaker
                 ?holder - hand ?other - hand)
    :precondition (and (cocktail-part1 ?c ?first) (cocktail-part2 ?c ?second)
                       (holding ?holder ?k) (handempty ?other)
                       (contains ?k ?first) (contains ?k ?second) (unshaked ?k))
    :effect (and (not (unshaked ?k)) (shaked ?k)
                 (not (contains ?k ?first)) (not (contains ?k ?second)) (contains ?k ?c)))

  (:action pour-shaker-to-shot
    :parameters (?b - beverage ?s - shot ?h - hand ?k - shaker ?before - level ?after - level)
    :precondition (and (next ?after ?before) (holding ?h ?k) (shaked ?k) (contains ?k ?b)
                       (empty ?s) (clean ?s) (shaker-level ?k ?before))
    :effect (and (not (empty ?s)) (not (clean ?s)) (contains ?s ?b)
                 (not (shaker-level ?k ?before)) (shaker-level ?k ?after))))
